"""OpenAI's own client against a real API with a real worker, whose models are fakes."""

from __future__ import annotations

import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from PIL import Image

from api.http.auth import new_key
from api.openai import images
from shared.database import Database
from shared.settings import Settings
from tests.support.api_server import png, serving
from tests.support.fakes import seed_colour
from tests.support.system import System, running_system
from tests.support.waiting import eventually
from tuwen.jobs import Status


@pytest.fixture(scope="module")
def system(module_settings: Settings) -> Iterator[Any]:
    settings = module_settings.model_copy(update={"fetch_allow_networks": ("127.0.0.0/8",)})
    with running_system(settings, settings.data_dir) as system:
        system.worker()
        yield system


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none needed", max_retries=0) as client:
        yield client


def data_url(image: bytes) -> str:
    return f"data:image/png;base64,{b64encode(image).decode()}"


def question(url: str, text: str = "What is this?") -> Any:
    return [
        {
            "role": "user",
            "content": [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}],
        }
    ]


def colour(data: bytes) -> Any:
    with Image.open(BytesIO(data)) as image:
        assert image.format == "PNG"
        return image.getpixel((0, 0))


class TestImages:
    def test_an_image(self, client: OpenAI) -> None:
        answer = client.images.generate(
            model="import:tests.support.fakes:NullGenerator", prompt="猫", extra_body={"seed": 7}
        )
        assert answer.data
        assert colour(b64decode(answer.data[0].b64_json or "")) == seed_colour(7)
        assert (answer.size, answer.output_format) == ("8x8", "png")

    def test_several_have_seeds_of_their_own(self, client: OpenAI) -> None:
        answer = client.images.generate(prompt="a cat", n=3, extra_body={"seed": 7}, response_format="b64_json")
        found = {colour(b64decode(image.b64_json or "")) for image in answer.data or []}
        assert found == {seed_colour(seed) for seed in (7, 8, 9)}

    def test_urls(self, client: OpenAI) -> None:
        answer = client.images.generate(prompt="a cat", n=2, extra_body={"seed": 7}, response_format="url")
        found = {colour(httpx.get(image.url or "").content) for image in answer.data or []}
        assert found == {seed_colour(seed) for seed in (7, 8)}

    @pytest.mark.parametrize("form", ["b64_json", "url"])
    def test_the_words_that_were_drawn(self, client: OpenAI, form: Any) -> None:
        answer = client.images.generate(prompt="revise a cat", n=2, extra_body={"seed": 7}, response_format=form)
        assert {image.revised_prompt for image in answer.data or []} == {"7 a cat", "8 a cat"}
        one = client.images.generate(prompt="revise a cat", extra_body={"seed": 9}, response_format=form)
        assert [image.revised_prompt for image in one.data or []] == ["9 a cat"]
        plain = client.images.generate(prompt="a cat", response_format=form)
        assert [image.revised_prompt for image in plain.data or []] == [None]

    def test_the_words_that_were_drawn_in_a_stream(self, client: OpenAI) -> None:
        *_, last = client.images.generate(prompt="revise a cat", stream=True, extra_body={"seed": 9})
        assert last.to_dict()["revised_prompt"] == "9 a cat"

    def test_a_stream(self, client: OpenAI) -> None:
        stream = client.images.generate(prompt="a cat", stream=True, partial_images=2, extra_body={"seed": 9})
        *_, last = stream
        assert last.type == "image_generation.completed"
        assert colour(b64decode(last.b64_json)) == seed_colour(9)
        assert last.size == "8x8"

    @pytest.mark.parametrize(
        ("wish", "param", "code"),
        [
            ({"size": "big"}, "size", "invalid_request"),
            ({"size": "8x99999"}, "size", "invalid_request"),
            ({"n": 11}, "n", "invalid_request"),
            ({"n": 0}, "n", "invalid_request"),
            ({"n": 2, "stream": True}, "n", "unsupported_parameter"),
            ({"stream": True, "response_format": "url"}, "response_format", "unsupported_parameter"),
            ({"output_format": "gif"}, "output_format", "unsupported_parameter"),
            ({"background": "transparent"}, "background", "unsupported_parameter"),
            ({"prompt": ""}, "prompt", "invalid_request"),
            ({"prompt": "a\x00cat"}, "prompt", "invalid_request"),
            ({"extra_body": {"colour": "red"}}, "colour", "invalid_request"),
            ({"extra_body": {"seed": 2**64}}, "seed", "invalid_request"),
            ({"model": "import:tests.support.fakes:NullDescriber"}, "model", "model_not_supported"),
        ],
    )
    def test_what_cannot_be(self, client: OpenAI, wish: dict[str, Any], param: str, code: str) -> None:
        with pytest.raises(openai.BadRequestError) as refused:
            client.images.generate(**{"prompt": "a cat", **wish})
        assert (refused.value.param, refused.value.code, refused.value.type) == (param, code, "invalid_request_error")

    def test_what_nobody_foresaw(self, client: OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
        async def fail(*_: Any) -> None:
            raise ZeroDivisionError("secret")

        monkeypatch.setattr(images, "start", fail)
        with pytest.raises(openai.InternalServerError) as failed:
            client.images.generate(prompt="a cat")
        assert (failed.value.code, failed.value.type) == ("internal_error", "server_error")
        assert "secret" not in failed.value.message

    def test_an_engine_that_refuses(self, client: OpenAI) -> None:
        with pytest.raises(openai.InternalServerError) as refused:
            client.images.generate(prompt="reject this")
        assert refused.value.code == "engine_error"
        assert "rejected, as asked" in refused.value.message


class TestChat:
    MODEL = "import:tests.support.fakes:NullDescriber"

    def test_an_image_in_the_message(self, client: OpenAI) -> None:
        answer = client.chat.completions.create(
            model=self.MODEL, messages=question(data_url(png("red"))), max_tokens=20, temperature=0
        )
        assert answer.choices[0].message.content == "the colour 255-0-0"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.model == self.MODEL
        assert answer.usage
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens

    def test_the_answer_is_in_the_language_of_the_question(self, client: OpenAI) -> None:
        answer = client.chat.completions.create(
            model=self.MODEL, messages=question(data_url(png("red")), "图里有什么？")
        )
        assert answer.choices[0].message.content == "颜色 255-0-0"

    def test_an_image_on_the_web(self, client: OpenAI, web: str) -> None:
        answer = client.chat.completions.create(model=self.MODEL, messages=question(f"{web}/cat.png"))
        assert answer.choices[0].message.content == "the colour 0-0-255"

    def test_an_uploaded_image(self, client: OpenAI) -> None:
        image = client.files.create(file=("green.png", png("lime")), purpose="vision")
        content: Any = [{"type": "file", "file": {"file_id": image.id}}]
        answer = client.chat.completions.create(model=self.MODEL, messages=[{"role": "user", "content": content}])
        assert answer.choices[0].message.content == "the colour 0-255-0"

    def test_a_stream(self, client: OpenAI) -> None:
        chunks = list(
            client.chat.completions.create(
                model=self.MODEL,
                messages=question(data_url(png("red"))),
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "the colour 255-0-0"
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
        assert chunks[-1].usage is not None
        assert len({chunk.id for chunk in chunks}) == 1

    def test_a_stream_that_fails(self, client: OpenAI, web: str) -> None:
        stream = client.chat.completions.create(model=self.MODEL, messages=question(f"{web}/text.png"), stream=True)
        with pytest.raises(openai.APIError) as failed:
            list(stream)
        assert failed.value.code == "unsupported_format"

    @pytest.mark.parametrize(
        ("wish", "param", "code"),
        [
            ({"messages": [{"role": "user", "content": "no image"}]}, "messages", "invalid_request"),
            ({"messages": [{"role": "system", "content": "x"}]}, "messages", "invalid_request"),
            ({"messages": []}, "messages", "invalid_request"),
            ({"messages": question("ftp://example.com/cat.png")}, "messages", "invalid_request"),
            ({"messages": question("data:image/png;base64,!!!")}, "messages", "image_corrupt"),
            ({"messages": question("http://169.254.169.254/x.png")}, "messages", "url_forbidden"),
            ({"n": 2, "stream": True}, "n", "unsupported_parameter"),
            ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "unsupported_parameter"),
            ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
            ({"max_tokens": 0}, "max_tokens", "invalid_request"),
            ({"model": "import:tests.support.fakes:NullGenerator"}, "model", "model_not_supported"),
        ],
    )
    def test_what_cannot_be(self, client: OpenAI, wish: dict[str, Any], param: str, code: str) -> None:
        given: dict[str, Any] = {"model": self.MODEL, "messages": question(data_url(png()))}
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**{**given, **wish})
        assert (refused.value.param, refused.value.code) == (param, code)

    def test_a_model_that_nobody_serves(self, client: OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as refused:
            client.chat.completions.create(model="gpt-4o", messages=question(data_url(png())))
        assert refused.value.code == "model_not_found"
        assert self.MODEL in refused.value.message

    def test_who_goes_away_has_the_job_cancelled(self, client: OpenAI, system: System) -> None:
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.5).images.generate(prompt="sleep 60")
        [job] = system.database.jobs.page("local", limit=1)
        assert job.input["prompt"] == "sleep 60"
        eventually(lambda: system.database.jobs.get(job.id, "local").status is Status.CANCELLED)


class TestModels:
    def test_all_of_them(self, client: OpenAI) -> None:
        found = {model.id: model for model in client.models.list()}
        assert list(found) == [
            f"import:tests.support.fakes:Null{name}" for name in ("Generator", "Describer", "Recognizer", "Matcher")
        ]
        assert all(model.object == "model" and model.created > 0 for model in found.values())

    def test_one(self, client: OpenAI) -> None:
        assert client.models.retrieve(TestChat.MODEL).owned_by == "tuwen"
        with pytest.raises(openai.NotFoundError) as refused:
            client.models.retrieve("gpt-4o")
        assert refused.value.code == "model_not_found"


def test_keys(system: System, tmp_path: Path) -> None:
    settings = system.settings.model_copy(update={"auth": "keys"})
    key, hashed = new_key()
    database = Database(settings)
    database.keys.add(name="openai", tenant="openai", sha256=hashed, quota=0)
    database.close()
    with serving(settings) as url:
        stranger = OpenAI(base_url=f"{url}/v1", api_key="sk-unknown", max_retries=0)
        with pytest.raises(openai.AuthenticationError) as refused:
            stranger.images.generate(prompt="a cat")
        assert refused.value.code == "invalid_api_key"
        spent = OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
        with pytest.raises(openai.RateLimitError) as limited:
            spent.images.generate(prompt="a cat")
        assert limited.value.code == "rate_limit_exceeded"
        assert "retry-after" in limited.value.response.headers


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    """A web server with a picture, and a text that claims to be one."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = png("blue") if self.path == "/cat.png" else b"no picture"
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
