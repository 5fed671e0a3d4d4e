"""Who is near whom: along a graph, between coordinates, on a grid with or without land."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import make_field, random_values

from data.nodes import nearest_nodes
from data.windows import WindowedField


def field_of(nodes, **places):
    return dataclasses.replace(make_field(random_values(40, nodes)), **places)


def test_on_a_grid_the_nearest_are_the_steps_around():
    near = nearest_nodes(field_of(20, grid=(4, 5)), 5)
    assert near.shape == (20, 5) and near[:, 0].tolist() == list(range(20))
    assert set(near[7].tolist()) == {7, 6, 8, 2, 12}  # row 1, column 2


def test_land_is_no_neighbour():
    near = nearest_nodes(field_of(3, grid=(2, 4), kept=np.array([0, 1, 7])), 2)
    assert near.tolist() == [[0, 1], [1, 0], [2, 1]]


def test_between_coordinates_the_nearest_are_so_on_the_ground_across_the_date_line_too():
    places = np.array([[0.0, 179], [0, -179], [0, 170], [80, 0], [80, 180]])  # near the pole longitudes are close
    near = nearest_nodes(field_of(5, coordinates=places), 2)
    assert near.tolist() == [[0, 1], [1, 0], [2, 0], [3, 4], [4, 3]]


def test_along_a_graph_a_larger_weight_is_nearer_in_either_direction_and_ways_add_up():
    graph = torch.zeros(5, 5)
    graph[0, 1], graph[2, 1], graph[2, 3], graph[0, 3] = 1.0, 0.5, 1.0, 0.2  # ways from 0: 1, 1 + 2, 1 + 2 + 1 < 5
    near = nearest_nodes(field_of(5, graph=graph, grid=(1, 5)), 4)
    assert near[0].tolist() == [0, 1, 2, 3] and near[3].tolist() == [3, 2, 1, 0]
    assert near[4].tolist() == [4, 4, 4, 4]  # no edge leads there: the node itself fills the row


def test_nodes_at_one_place_begin_with_themselves():
    near = nearest_nodes(field_of(6, coordinates=np.zeros((6, 2))), 3)
    assert near[:, 0].tolist() == list(range(6)) and all(len(set(row)) == 3 for row in near.tolist())


@pytest.mark.parametrize("places", [{"grid": (2, 3)}, {"coordinates": random_values(6, 2)},
                                    {"graph": torch.ones(6, 6)}])
def test_more_than_there_are_is_all_of_them(places):
    data = WindowedField(field_of(6, **places), 3, 2)
    near = data.nearest_nodes(8)
    assert near.shape == (6, 8) and all(set(row) == set(range(6)) for row in near.tolist())


def test_nodes_without_places_have_no_neighbours():
    assert nearest_nodes(field_of(6), 3) is None
