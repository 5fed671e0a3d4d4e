"""Who is near whom: along a graph, between coordinates, on a grid with or without land; files that say so."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import make_field, random_values

from data.nodes import nearest_nodes, read_graph, read_node_table
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


# Files of places and graphs

NAMES = ("400001", "400017", "NA")


def refusal(read, text, tmp_path) -> str:
    (tmp_path / "f.csv").write_text(text)
    with pytest.raises(ValueError) as caught:
        read(tmp_path / "f.csv")
    assert str(caught.value).startswith(f"{tmp_path / 'f.csv'}:")
    return str(caught.value)


@pytest.mark.parametrize("header", [
    "sensor_id,latitude,longitude", "name,lat,lon", "Station,LAT,LON", "station_id,Latitude,lng", "id, lat, lon",
])
def test_a_node_table_names_its_columns_in_any_usual_way(tmp_path, header):
    (tmp_path / "n.csv").write_text(f"{header}\nNA,1,2\n400017,3,4\n400001,5,6\n")
    names, places = read_node_table(tmp_path / "n.csv", NAMES, 3)
    assert names == NAMES and places.tolist() == [[5, 6], [3, 4], [1, 2]]


def test_of_several_columns_of_names_and_places_a_node_table_gives_the_names_of_the_data_and_degrees(tmp_path):
    (tmp_path / "n.csv").write_text("index,name,sensor_id,x,y,latitude,longitude\n"
                                    "0,Main St,400017,5e5,3e6,3,4\n1,Hill,NA,5e5,3e6,1,2\n2,Hill,400001,5e5,3e6,5,6\n")
    names, places = read_node_table(tmp_path / "n.csv", NAMES, 3)
    assert names == NAMES and places.tolist() == [[5, 6], [3, 4], [1, 2]]


def test_projected_places_are_no_degrees(tmp_path):
    assert "columns name, y, x; expected name, lat, lon" in refusal(
        lambda path: read_node_table(path, NAMES, 3), "name,y,x\n400001,1,2\n400017,1,2\nNA,1,2\n", tmp_path)


@pytest.mark.parametrize("text", [
    "from,to,weight\n400001,NA,0.5\nNA,400017,2\n", "source,target,weight\n400001,NA,0.5\nNA,400017,2\n",
    ",from,to,weight\n0,400001,NA,0.5\n1,NA,400017,2\n", "From, To, Weight\n400001, NA, 0.5\nNA, 400017, 2\n",
])
def test_a_graph_joins_nodes_by_their_names(tmp_path, text):
    (tmp_path / "g.csv").write_text(text)
    assert read_graph(tmp_path / "g.csv", NAMES).tolist() == [[0, 0, 0.5], [0, 0, 0], [0, 2, 0]]


@pytest.mark.parametrize("text, words", [
    ("from,to,cost\n400001,NA,3\n", "column cost of edges; expected from, to and, optionally, weight"),
    ("from,to,weight,distance\n400001,NA,1,3\n", "column distance of edges"),
    ("source,target,w\n400001,NA,3\n", "column w of edges; expected source, target"),
    ("from,to,weight\n400001,NA,3\n400017,NA,-0.5\n", "weight -0.5 from 400017 to NA; expected 0, no edge, or more"),
    ("0,1,0\n0,0,-2\n0,0,0\n", "weight -2 from 400017 to NA; expected 0, no edge, or more"),
])
def test_weights_that_cannot_be_told_from_distances_and_negative_ones_are_refused(tmp_path, text, words):
    assert words in refusal(lambda path: read_graph(path, NAMES), text, tmp_path)
