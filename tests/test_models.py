"""What each model takes, held against the emulator, which was written from the guide on its own."""

from __future__ import annotations

import json
import logging
from typing import Any, cast

import httpx
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from media_samples import mp4_base64, png_base64

from airflow_provider_codegateway.emulator import Emulator
from airflow_provider_codegateway.emulator.rules import InvalidRequest as Refused
from airflow_provider_codegateway.emulator.rules import check as emulator_check
from airflow_provider_codegateway.exceptions import Bought, InvalidRequest
from airflow_provider_codegateway.models import MODELS, build_request

VEO, SEEDANCE, HAILUO = "google/veo-3.1-fast", "bytedance/seedance-2.0", "minimax/hailuo-2.3-fast"
PNG, MP4 = png_base64(), mp4_base64()

LEGAL: dict[str, list[dict[str, Any]]] = {
    VEO: [
        {"prompt": "a lighthouse"},
        {"prompt": "x" * 2000},
        {"prompt": "灯台 🌊 é"},
        {"prompt": "a", "duration": 4},
        {"prompt": "a", "duration": "6"},
        {"prompt": "a", "duration": "8s"},
        {"prompt": "a", "aspect_ratio": "16:9"},
        {"prompt": "a", "aspect_ratio": "9:16"},
        {"prompt": "a", "aspect_ratio": "1:1"},
        {"prompt": "a", "resolution": "720p"},
        {"prompt": "a", "resolution": "1080P"},
        {"prompt": "a", "generate_audio": True},
        {"prompt": "a", "generate_audio": "false"},
        {"prompt": "a", "image": PNG},
        {"prompt": "a", "parameters": {"image_input": PNG}},
        {"prompt": "a", "parameters": {"duration": "4s"}},
        {"prompt": "a", "parameters": {"resolution": "1080p", "generate_audio": False}},
        {"prompt": "a", "parameters": {"aspect_ratio": None}},
        {"prompt": "a", "aspect_ratio": "", "duration": "", "resolution": "", "image": ""},
        {"parameters": {"prompt": "a"}},
    ],
    SEEDANCE: [
        {"prompt": "a"},
        {"prompt": "a", "duration": 4},
        {"prompt": "a", "duration": "12s"},
        {"prompt": "a", "duration": "5"},
        {"prompt": "a", "aspect_ratio": "21:9"},
        {"prompt": "a", "aspect_ratio": "9:21"},
        {"prompt": "a", "aspect_ratio": "4:3"},
        {"prompt": "a", "aspect_ratio": "3:4"},
        {"prompt": "a", "resolution": "480p"},
        {"prompt": "a", "resolution": "1080P"},
        {"prompt": "a", "seed": 42},
        {"prompt": "a", "seed": "-1"},
        {"prompt": "a", "generate_audio": True},
        {"prompt": "a", "parameters": {"camera_fixed": True, "watermark": False}},
        {"prompt": "a", "parameters": {"fps": 24}},
        {"prompt": "a", "image": "https://example.com/wheat-field.jpg"},
        {"prompt": "a", "image": PNG, "parameters": {"last_frame_image": PNG}},
        {"prompt": "a", "parameters": {"reference_images": [PNG, "https://example.com/a.png"]}},
        {"prompt": "a", "parameters": {"reference_video": MP4}},
        {"prompt": "a", "parameters": {"duration": 10, "seed": 0}},
    ],
    HAILUO: [
        {},
        {"prompt": "a"},
        {"prompt": ""},
        {"prompt": "x" * 2000},
        {"prompt": "a", "duration": 6},
        {"prompt": "a", "duration": "6s"},
        {"prompt": "a", "duration": "10"},
        {"prompt": "a", "resolution": "768p"},
        {"prompt": "a", "resolution": "768P"},
        {"prompt": "a", "resolution": "1080p"},
        {"prompt": "a", "resolution": "1080P"},
        {"prompt": "a", "image": PNG},
        {"image": PNG},
        {"image": "https://example.com/a.png"},
        {"parameters": {"first_frame_image": PNG}},
        {"prompt": "a", "parameters": {"fast_pretreatment": True}},
        {"prompt": "a", "parameters": {"prompt_optimizer": False}},
        {"prompt": "a", "parameters": {"duration": 6}},
        {"prompt": "a", "parameters": {"resolution": "1080P"}},
        {"prompt": "a", "parameters": {"prompt_optimizer": True, "fast_pretreatment": False}},
    ],
}

# Each with words that its message must hold: the field, the value, or what to use.
ILLEGAL: dict[str, list[tuple[dict[str, Any], str]]] = {
    VEO: [
        ({}, "prompt is required for google/veo-3.1-fast"),
        ({"prompt": ""}, "prompt is required"),
        ({"prompt": " \n"}, "prompt=' \\n' describes no video"),
        ({"prompt": "x" * 2001}, "2,001 characters"),
        ({"prompt": 7}, "Use text"),
        ({"prompt": "a", "duration": 5}, "veo-3.1-fast does not support duration=5. Use 4, 6 or 8."),
        ({"prompt": "a", "duration": "6 seconds"}, "duration='6 seconds'"),
        ({"prompt": "a", "duration": True}, "duration=True"),
        ({"prompt": "a", "parameters": {"duration": 6}}, "duration=6. Use '4s', '6s' or '8s'."),
        ({"prompt": "a", "parameters": {"duration": "6"}}, "duration='6'"),
        ({"prompt": "a", "resolution": "480p"}, "Use '720p' or '1080p'"),
        ({"prompt": "a", "parameters": {"resolution": "1080P"}}, "resolution='1080P'"),
        ({"prompt": "a", "aspect_ratio": "4:3"}, "Use '16:9', '9:16' or '1:1'"),
        ({"prompt": "a", "generate_audio": "yes"}, "Use True or False"),
        ({"prompt": "a", "generate_audio": 1}, "generate_audio=1"),
        ({"prompt": "a", "seed": 1}, "only 'bytedance/seedance-2.0' has it"),
        ({"prompt": "a", "parameters": {"aspect_ration": "1:1"}}, "Did you mean 'aspect_ratio'?"),
        ({"prompt": "a", "parameters": {"fps": 24}}, "has no parameter 'fps'"),
        ({"prompt": "a", "image": "http://example.com/a.png"}, "is not https"),
        ({"prompt": "a", "image": "https://169.254.169.254/latest"}, "169.254.169.254"),
    ],
    SEEDANCE: [
        ({}, "prompt is required for bytedance/seedance-2.0"),
        ({"prompt": "x" * 2001}, "at most 2,000"),
        ({"prompt": "a", "duration": 3}, "Use an integer from 4 to 12"),
        ({"prompt": "a", "duration": 13}, "duration=13"),
        ({"prompt": "a", "duration": 5.5}, "duration=5.5"),
        ({"prompt": "a", "parameters": {"duration": "6s"}}, "duration='6s'"),
        ({"prompt": "a", "parameters": {"duration": True}}, "duration=True"),
        ({"prompt": "a", "resolution": "768P"}, "Use '480p', '720p' or '1080p'"),
        ({"prompt": "a", "aspect_ratio": "2:1"}, "aspect_ratio='2:1'"),
        ({"prompt": "a", "parameters": {"fps": 30}}, "Use 24"),
        ({"prompt": "a", "parameters": {"fps": "24"}}, "fps='24'"),
        ({"prompt": "a", "parameters": {"camera_fixed": "true"}}, "camera_fixed='true'"),
        ({"prompt": "a", "parameters": {"watermark": 0}}, "watermark=0"),
        ({"prompt": "a", "seed": "lucky"}, "seed='lucky'"),
        ({"prompt": "a", "parameters": {"seed": 1.5}}, "seed=1.5"),
        ({"prompt": "a", "parameters": {"camera_fix": True}}, "Did you mean 'camera_fixed'?"),
        ({"prompt": "a", "parameters": {"reference_images": PNG}}, "Use a list of images"),
        ({"prompt": "a", "parameters": {"reference_video": PNG}}, "reference_video"),
        ({"prompt": "a", "image": "https://assets.internal/a.png"}, "assets.internal"),
        ({"prompt": "a", "image": PNG, "parameters": {"image": PNG}}, "Keep one of the two"),
    ],
    HAILUO: [
        ({"prompt": "x" * 2001}, "2,001 characters"),
        ({"prompt": 3}, "prompt=3"),
        ({"prompt": "a", "aspect_ratio": "16:9"}, "has no parameter 'aspect_ratio'"),
        ({"prompt": "a", "parameters": {"aspect_ratio": "16:9"}}, "has no parameter 'aspect_ratio'"),
        ({"prompt": "a", "resolution": "720p"}, "Use '768P' or '1080P'"),
        ({"prompt": "a", "parameters": {"resolution": "768p"}}, "resolution='768p'"),
        ({"prompt": "a", "parameters": {"resolution": "1080p"}}, "resolution='1080p'"),
        ({"prompt": "a", "duration": "six"}, "duration='six'"),
        ({"prompt": "a", "duration": 0}, "an integer of 1 or more"),
        ({"prompt": "a", "parameters": {"duration": "6s"}}, "duration='6s'"),
        ({"prompt": "a", "parameters": {"duration": 6.5}}, "duration=6.5"),
        ({"prompt": "a", "generate_audio": True}, "has no parameter 'generate_audio'"),
        ({"prompt": "a", "seed": 1}, "has no parameter 'seed'"),
        ({"prompt": "a", "parameters": {"prompt_optimiser": True}}, "Did you mean 'prompt_optimizer'?"),
        ({"prompt": "a", "parameters": {"prompt_optimizer": "true"}}, "prompt_optimizer='true'"),
        ({"prompt": "a", "parameters": {"fast_pretreatment": 1}}, "fast_pretreatment=1"),
        ({"prompt": "a", "parameters": {"watermark": False}}, "has no parameter 'watermark'"),
        ({"prompt": "a", "parameters": {"image": PNG}}, "has no parameter 'image'"),
        ({"prompt": "a", "image": "https://localhost/a.png"}, "localhost"),
        ({"prompt": "a", "parameters": {"model": "x"}}, "'model' is set in parameters"),
    ],
}


class Scalar:
    """A number as numpy has it, which pandas takes from it: no ``int``, and with a way to become one."""

    def __init__(self, value: float) -> None:
        self._value = value

    def item(self) -> float:
        return self._value


class Gap:
    """A missing value as pandas has it, which can be compared with nothing."""

    def __eq__(self, other: object) -> Any:
        return self

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")

    def __repr__(self) -> str:
        return "<NA>"


def cases(table: dict[str, list[Any]]) -> list[Any]:
    assert {model: len(rows) for model, rows in table.items()} == dict.fromkeys(MODELS, 20)
    return [
        pytest.param(model, row, id=f"{model}-{n}")
        for model, rows in table.items()
        for n, row in enumerate(rows)
    ]


@pytest.fixture(scope="module", autouse=True)
def _short_clips(shared_gateway: Emulator) -> None:
    shared_gateway.reset()
    shared_gateway.serve_clip(b"\0\0\0\x18ftypmp42")


@pytest.mark.parametrize(("model", "arguments"), cases(LEGAL))
def test_a_legal_request_is_never_answered_400(
    model: str, arguments: dict[str, Any], shared_gateway: Emulator
) -> None:
    """What the guide allows passes our validation and then the gateway's, over a real socket."""
    body = build_request(model, **arguments).body()
    answer = httpx.post(
        f"{shared_gateway.url}/v1/video/generate",
        json=body,
        headers={"Authorization": f"Bearer {shared_gateway.api_key}"},
    )
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(("model", "case"), cases(ILLEGAL))
def test_an_illegal_request_is_refused_for_free_in_words_that_help(
    model: str, case: tuple[dict[str, Any], str]
) -> None:
    """What the guide rules out never becomes a request; the message names what is wrong or what to use."""
    arguments, words = case
    with pytest.raises(InvalidRequest) as refusal:
        build_request(model, **arguments)
    assert words in str(refusal.value)
    assert str(refusal.value).endswith(Bought.NO.value)
    assert isinstance(refusal.value, ValueError)


def test_every_problem_is_listed_at_once() -> None:
    """A request is fixed in one go, and not one error at a time."""
    with pytest.raises(InvalidRequest) as refusal:
        build_request(VEO, duration=5, resolution="480p", parameters={"watermark": True})
    assert len(refusal.value.problems) == 4


def test_only_what_the_author_set_is_sent() -> None:
    """Defaults are the model's own: they are not sent."""
    assert build_request(SEEDANCE, prompt="a", seed=0).body() == {"model": SEEDANCE, "prompt": "a", "seed": 0}


@pytest.mark.parametrize(
    ("model", "duration", "resolution", "image_field"),
    [
        (VEO, "6s", "1080p", "image_input"),
        (SEEDANCE, 6, "1080p", "image"),
        (HAILUO, 6, "1080P", "first_frame_image"),
    ],
)
@pytest.mark.parametrize("six", [6, "6", "6s", " 6 s ", 6.0, "6.0", "6.0s", "6.s"])
@pytest.mark.parametrize("full_hd", ["1080p", "1080P"])
def test_switching_models_is_changing_one_string(
    model: str, duration: object, resolution: str, image_field: str, six: Any, full_hd: str
) -> None:
    """A portable value becomes what each model takes, however it was written."""
    body = build_request(model, prompt="a", duration=six, resolution=full_hd, image=PNG).body()
    assert (body["duration"], body["resolution"], body[image_field]) == (duration, resolution, PNG)


def test_a_model_s_name_is_bounded() -> None:
    """What is longer than S3 keeps beside a clip is refused for free."""
    with pytest.raises(InvalidRequest, match="Use a name of at most 200 characters"):
        build_request("acme/" + "x" * 300, prompt="p")


@pytest.mark.parametrize("model", [*MODELS, "acme/next"])
@pytest.mark.parametrize(
    "prompt", ["None", "none", " nan ", "NaN", "null", "undefined", "NaT", "<NA>", " ", "\n\t", "\u3000"]
)
@pytest.mark.parametrize("where", ["argument", "parameters"])
def test_a_prompt_that_is_a_missing_value_is_refused_on_every_model(
    model: str, prompt: str, where: str
) -> None:
    """No clip of the word "None" is bought, and the message says where it may come from."""
    arguments: dict[str, Any] = (
        {"prompt": prompt} if where == "argument" else {"parameters": {"prompt": prompt}}
    )
    with pytest.raises(InvalidRequest, match="describes no video") as refusal:
        build_request(model, **arguments)
    assert "task id, key or column" in str(refusal.value)


@pytest.mark.parametrize("prompt", ["None of them moves", "a null modem", "Nan bread", "naan"])
def test_a_prompt_with_such_a_word_in_it_is_a_prompt(prompt: str) -> None:
    """Only one that is nothing else is refused."""
    assert build_request(HAILUO, prompt=prompt).body()["prompt"] == prompt


def test_numbers_of_a_table_are_understood() -> None:
    """pandas makes floats of integers if the column has a gap, and has scalars of its own."""
    six, true, fraction = (cast("Any", Scalar(value)) for value in (6, True, 1.5))
    body = build_request(
        SEEDANCE,
        prompt="a",
        duration=six,
        seed=7.0,
        generate_audio=true,
    ).body()
    assert body == {"model": SEEDANCE, "prompt": "a", "duration": 6, "seed": 7, "generate_audio": True}
    assert [type(value) for value in body.values()] == [str, str, int, bool, int]
    assert build_request("acme/next", duration=six).body()["duration"] == 6
    with pytest.raises(InvalidRequest, match=r"does not support seed=1.5. Use an integer"):
        build_request(SEEDANCE, prompt="a", seed=fraction)


def test_an_unknown_model_is_passed_through_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The next model works before this package knows it: as written, unchecked, and said so."""
    with caplog.at_level(logging.WARNING):
        request = build_request(
            "google/veo-3.2",
            prompt="x" * 3000,
            duration="6s",
            resolution="4K",
            parameters={"new": [1, {"a": None}]},
        )
    assert request.body() == {
        "model": "google/veo-3.2",
        "prompt": "x" * 3000,
        "duration": "6s",
        "resolution": "4K",
        "new": [1, {"a": None}],
    }
    assert "does not know the model 'google/veo-3.2'" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": ""}, "not the name of a model"),
        ({"model": None}, "not the name of a model"),
        ({"model": VEO, "prompt": "a", "parameters": ["duration"]}, "must be a dict"),
        ({"model": VEO, "prompt": "a", "duration": float("nan")}, "does not support duration=nan"),
        ({"model": VEO, "prompt": "a", "duration": Gap()}, "does not support duration=<NA>"),
        ({"model": "x/y", "prompt": Gap()}, "cannot be written as JSON"),
        ({"model": "x/y", "parameters": {"when": object()}}, "cannot be written as JSON"),
        ({"model": "x/y", "parameters": {"weight": float("nan")}}, "cannot be written as JSON"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(arguments: dict[str, Any], words: str) -> None:
    """Whatever a template rendered to, the answer is a clear refusal and no traceback of ours."""
    with pytest.raises(InvalidRequest, match=words):
        build_request(**arguments)


def test_a_refusal_shows_no_media_bytes_and_no_presigned_query() -> None:
    """An image is described, never quoted."""
    secret = "X-Amz-Signature=0123456789abcdef"
    with pytest.raises(InvalidRequest) as refusal:
        build_request(
            VEO,
            prompt="a",
            image=f"http://bucket.example.com/a.png?{secret}",
            parameters={"last_frame_image": PNG, "image_input": f"https://localhost/?{secret}"},
        )
    assert secret not in str(refusal.value)
    assert PNG[:40] not in str(refusal.value)


def test_the_fingerprint_is_of_the_content_and_not_of_where_it_was_read() -> None:
    """Two spellings of one request have one fingerprint; another prompt or image has another."""
    request = build_request(SEEDANCE, prompt="a", duration="6s", parameters={"seed": 1})
    assert request.fingerprint() == build_request(SEEDANCE, prompt="a", duration=6, seed="1").fingerprint()
    assert request.fingerprint() != build_request(SEEDANCE, prompt="b", duration=6, seed=1).fingerprint()
    with_image = build_request(SEEDANCE, prompt="a", image="s3://bucket/a.png").with_media(lambda *_: PNG)
    inline = build_request(SEEDANCE, prompt="a", image=PNG)
    other = build_request(SEEDANCE, prompt="a", image="https://example.com/a.png")
    assert with_image.fingerprint() == inline.fingerprint() != other.fingerprint()


# What our validation accepts the emulator accepts, and the other way round.

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 60),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.sampled_from(
        ["4s", "6s", "8s", "6", "720p", "1080p", "480p", "768P", "1080P", "16:9", "21:9", "1:1", "4:3"]
    ),
    st.sampled_from(
        [PNG, MP4, "https://example.com/a.png", "http://example.com/a", "https://10.0.0.1/", "AAAA"]
    ),
)
names = st.sampled_from(
    [*sorted({name for model in MODELS.values() for name in model.model_fields} - {"model"}), "size"]
)
bodies = st.dictionaries(names, st.one_of(scalars, st.lists(scalars, max_size=3)), max_size=5)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(model=st.sampled_from(sorted(MODELS)), body=bodies)
@example(model=SEEDANCE, body={"prompt": "a", "fps": 24.0})
@example(model=SEEDANCE, body={"prompt": "a", "duration": 5.0})
def test_our_validation_and_the_emulators_agree(model: str, body: dict[str, Any]) -> None:
    """Two readings of the guide, written apart, accept and refuse the same bodies."""
    # `None` means "not set" to us, and is a wrong type on the wire.
    body = {name: value for name, value in body.items() if value is not None}
    # The guide allows these on Hailuo: that a missing value is no prompt is a rule of our own.
    assume(not isinstance(body.get("prompt"), str) or not body["prompt"] or body["prompt"].strip())
    try:
        ours = build_request(model, parameters=body).body()
    except InvalidRequest:
        ours = None
    try:
        text = json.dumps({**body, "model": model}).encode()
        emulator_check(json.loads(text))
        theirs = True
    except Refused:
        theirs = False
    assert (ours is not None) == theirs
    if ours is not None:
        assert ours == {**body, "model": model}
