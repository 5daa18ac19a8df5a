import openai
import pytest


def test_list_has_one_model(client):
    models = client.models.list().data
    assert len(models) == 1
    assert models[0].object == "model"
    assert models[0].id
    assert models[0].created > 0
    assert models[0].owned_by


def test_retrieve_is_what_the_list_has(client, model):
    assert client.models.retrieve(model) == client.models.list().data[0]


def test_retrieve_of_another_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("no-such-model")
    assert error.value.code == "model_not_found"
    assert "no-such-model" in error.value.message
