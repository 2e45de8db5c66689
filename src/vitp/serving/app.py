"""The application of `vitp serve`: its routes; `docs/serving.md` describes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitp.core.errors import VitpError, did_you_mean
from vitp.core.version import __version__
from vitp.io.open_pixels import open_pixels
from vitp.serving.answers import COG, GEOJSON, JSON, PNG
from vitp.serving.api_page import api_page
from vitp.serving.asking import streamed
from vitp.serving.gate import Gate, ServerLimits
from vitp.serving.look import attended, coloured
from vitp.serving.models import model_named
from vitp.serving.predicting import Asked, check_asked
from vitp.serving.refusal import Refusal, refusal_of
from vitp.serving.service import Service
from vitp.serving.store import StoredImage
from vitp.serving.tiles import ShownImage

PAGE = Path(__file__).parent / "page"
"""Files of the page, each served under its own name."""
MOST_SAMPLES, MOST_TOKENS, LONGEST_QUESTION = 500, 1024, 4000

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
_PAGE_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
_REFUSED: dict[int | str, dict[str, Any]] = {
    422: {"description": 'what was asked can\'t be answered, in one sentence: {"error": "…"}'},
    413: {"description": "the file or the image is too large"},
    503: {"description": "too many wait, or the server is shutting down; Retry-After says when to try again"},
}

Model = Annotated[str, Form(description="Name of a model; may be left out where only one can do this.")]
_FORMS = frozenset({"multipart/form-data", "application/x-www-form-urlencoded"})
Upload = Annotated[UploadFile | None, File(description="The image itself.")]
Kept = Annotated[str | None, Form(description="Id of an image that `/images` has returned.")]
BelowRoot = Annotated[str | None, Form(description="Its place below the server's root.")]
LayerField = Annotated[int | None, Form(description="From 0; the last one by default.")]


@dataclass
class OfImage:
    """The fields of a request about one image, of which one names it."""

    model: Model = ""
    file: Upload = None
    image: Kept = None
    path: BelowRoot = None

    @property
    def fields(self) -> dict[str, UploadFile | str | None]:
        """Those that can name the image."""
        return {"file": self.file, "image": self.image, "path": self.path}


@dataclass
class Later:
    """The fields that can name the later date."""

    after_file: Upload = None
    after_image: Kept = None
    after_path: BelowRoot = None


def make_app(service: Service) -> FastAPI:
    """Return the application with all its routes, before the gate."""
    app = FastAPI(
        title="vitp serve",
        version=__version__,
        description="Finetuned models, vision-language models and backbones of this server.",
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(_known_fields)],
    )
    app.state.service = service
    app.add_middleware(_HeadAsGet)
    _add_errors(app)
    _add_pages(app)
    _add_facts(app, service)
    _add_images(app, service)
    _add_predict(app, service)
    _add_ask(app, service)
    _add_look(app, service)
    return app


class _HeadAsGet:
    """Answers HEAD as GET, without the body: FastAPI's routes know the methods alone that they name."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def bare(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        # A copy: the server sees by its own that this is HEAD, and the log by its route what was asked for.
        inner = {**scope, "method": "GET"}
        try:
            await self._app(inner, receive, bare)
        finally:
            scope["route"] = inner.get("route")


async def _known_fields(request: Request) -> None:
    """Refuse what a request says that nobody would read: a misspelt field would pass for one that was left out."""
    dependant = getattr(request.scope.get("route"), "dependant", None)
    if request.method != "POST" or dependant is None:
        return
    form, address = _names(dependant, "body_params"), _names(dependant, "query_params")
    for name in request.query_params:
        if name in form:
            raise Refusal(422, f'"{name}" is read from the form, not from the address')
        if name not in address:
            raise Refusal(422, f'there is no "{name}" in the address; {_nearest(name, form)}')
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and kind not in _FORMS:
        raise Refusal(415, f"the request is {kind[:60]}; send a form (multipart/form-data), as curl -F does")
    given = [name for name, _ in (await request.form()).multi_items()]
    for name in given:
        if name not in form:
            raise Refusal(422, f'there is no field "{name[:60]}"; {_nearest(name, form)}')
        if given.count(name) > 1:
            raise Refusal(422, f'the field "{name}" is given {given.count(name)} times, and one is read')


def _names(dependant: Any, kind: str) -> set[str]:
    own = {field.alias for field in getattr(dependant, kind)}
    return own.union(*(_names(one, kind) for one in dependant.dependencies))


def _nearest(name: str, known: set[str]) -> str:
    return did_you_mean(name, known) or f"known are {', '.join(sorted(known))}"


def gated_app(
    service: Service,
    limits: ServerLimits,
    *,
    token: str | None = None,
    local: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> Gate:
    """Return the application behind its limits; see `Gate`."""
    app = make_app(service)
    public = {"/", "/health", "/favicon.ico", *(f"/{file.name}" for file in _page_files())}
    gate = Gate(app, limits, token=token, public=public, local=local, log=log)
    app.state.gate = gate
    return gate


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        sentence = error.detail
        if error.status_code == 404 and not isinstance(error, Refusal):
            sentence = "there is nothing here; /api lists what there is"
        elif error.status_code == 405:
            sentence = "this can't be asked in this way; /api lists how"
        headers = dict(error.headers or {})
        if headers.get("Allow") == "GET":
            headers["Allow"] = "GET, HEAD"
        return JSONResponse({"error": str(sentence)}, error.status_code, headers=headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:
        sentence = f"internal error ({type(error).__name__}); the server's log says where"
        return JSONResponse({"error": sentence}, 500)

    @app.exception_handler(RequestValidationError)
    async def wrong(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field_name = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        return JSONResponse({"error": f"{field_name}: {first['msg']}"}, 422)


def _page_files() -> list[Path]:
    return sorted(path for path in PAGE.glob("*") if path.suffix in _TYPES) if PAGE.is_dir() else []


def _add_pages(app: FastAPI) -> None:
    files = {f"/{path.name}": path for path in _page_files()}
    if "/index.html" in files:
        files["/"] = files["/index.html"]

    def route(path: str, file: Path) -> None:
        content, kind = file.read_bytes(), _TYPES[file.suffix]

        @app.get(path, include_in_schema=False)
        async def page_file() -> Response:
            return Response(content, media_type=kind, headers=_PAGE_HEADERS)

    for path, file in files.items():
        route(path, file)

    @app.get("/api", include_in_schema=False)
    async def described() -> HTMLResponse:
        return HTMLResponse(api_page(app.openapi()))


def _add_facts(app: FastAPI, service: Service) -> None:
    @app.get("/health", summary="Whether the server answers")
    async def health(request: Request) -> dict[str, Any]:
        gate = getattr(app.state, "gate", None)
        # Anybody may ask whether the server is well, but not what it serves.
        known = gate is None or gate.authorised(request.headers)
        return {
            "status": "ok",
            "models": list(service.models) if known else [],
            "queue": service.line.length,
            "version": __version__,
        }

    @app.get("/models", summary="The models, and what each takes and gives")
    async def models() -> list[dict[str, Any]]:
        return [model.described() for model in service.models.values()]

    @app.get("/samples", summary="Images below the server's root")
    async def samples() -> list[dict[str, Any]]:
        return await asyncio.to_thread(service.store.samples, MOST_SAMPLES)

    one_at_a_time = asyncio.Lock()

    @app.get(
        "/samples/picture",
        summary="An image below the server's root, at most 256 pixels wide and high",
        response_class=Response,
        responses={200: {"content": {PNG: {}}}},
    )
    async def sample_picture(path: str) -> Response:
        def read() -> bytes:
            image = service.store.below_root(path)
            try:
                with open_pixels(image.address) as pixels:
                    return ShownImage(pixels).small()
            except (VitpError, MemoryError) as error:
                raise refusal_of(error, {image.address: "the image"}) from error

        # Pictures are decoded as a whole, and a page asks for many; others are to get their threads meanwhile.
        async with one_at_a_time:
            content = await asyncio.to_thread(read)
        return Response(content, media_type=PNG, headers={"Cache-Control": "private, max-age=3600"})


def _add_images(app: FastAPI, service: Service) -> None:
    @app.post("/images", summary="Send an image that later requests are about", responses=_REFUSED)
    async def images(file: Upload = None, path: BelowRoot = None) -> dict[str, Any]:
        with ExitStack() as stack:
            image = await service.image(stack, {"file": file, "path": path})
            image.gone = False
            return {"id": service.store.keep(image), **image.described()}

    @app.get(
        "/images/{id}/tiles/{level}/{x}/{y}.png",
        summary="A part of an image, 256 pixels a side; level 0 is the full resolution, each next one half of it",
        response_class=Response,
        responses={200: {"content": {PNG: {}}}},
    )
    async def tile(id: str, level: int, x: int, y: int) -> Response:
        with service.store.used(id) as image:

            def read() -> bytes:
                return service.open_images.shown(image).tile(level, x, y)

            try:
                content = await asyncio.to_thread(read)
            except (VitpError, MemoryError) as error:
                raise refusal_of(error, {image.address: "the image"}) from error
        return Response(content, media_type=PNG, headers={"Cache-Control": "private, max-age=3600"})


def _add_predict(app: FastAPI, service: Service) -> None:
    @app.post(
        "/predict",
        summary="What a finetuned model finds in an image, or changed between two",
        responses={**_REFUSED, 200: {"content": {kind: {} for kind in (JSON, GEOJSON, PNG, COG)}}},
        response_class=Response,
    )
    async def predict(
        of: Annotated[OfImage, Depends()],
        later: Annotated[Later, Depends()],
        threshold: Annotated[
            float | None, Form(ge=0, le=1, description="Least score of objects; as the model says.")
        ] = None,
        format: Annotated[
            Literal["json", "geojson", "png", "cog"],
            Form(description="geojson and cog are for images that say where they lie on the ground."),
        ] = "json",
        certainty: Annotated[
            bool, Form(description="json: class maps come with how sure the model is of each pixel.")
        ] = False,
    ) -> Response:
        served = model_named(service.models, of.model, ("task",), "predict")
        with ExitStack() as stack:
            stack.enter_context(service.line.place())
            dates = [await service.image(stack, of.fields)]
            if any(one not in (None, "") for one in vars(later).values()):
                dates.append(await service.image(stack, vars(later)))
            asked = Asked(served, tuple(dates), threshold, format, certainty and format == "json")
            check_asked(asked, service.store)
            weight = sum(date.pixels for date in dates)
            future = served.worker.call_together(service.predictor.answers, asked, weight)
            answer = await service.result(stack, future, asked.names)
        if isinstance(answer.content, bytes):
            return Response(answer.content, media_type=answer.media_type)
        return JSONResponse(answer.content)


def _add_ask(app: FastAPI, service: Service) -> None:
    @app.post(
        "/ask",
        summary="What a vision-language model answers; the answer streams",
        responses={**_REFUSED, 200: {"content": {"text/event-stream": {}}}},
        response_class=StreamingResponse,
    )
    async def ask(
        of: Annotated[OfImage, Depends()],
        question: Annotated[str, Form(max_length=LONGEST_QUESTION)] = "",
        max_tokens: Annotated[int, Form(ge=1, le=MOST_TOKENS, description="Of the answer.")] = 128,
    ) -> StreamingResponse:
        served = model_named(service.models, of.model, ("vlm",), "answer questions")
        if not question.strip():
            raise Refusal(422, "the question is empty; ask something")
        with ExitStack() as stack:
            stack.enter_context(service.line.place())
            asked = await service.image(stack, of.fields)
            service.store.check_pixels(asked)
            return await streamed(service, stack, served, asked, question, max_tokens)


def _add_look(app: FastAPI, service: Service) -> None:
    any_model = ("task", "vlm", "backbone")

    @app.post("/attention", summary="How much the patch at a point attends to each patch", responses=_REFUSED)
    async def attention(
        of: Annotated[OfImage, Depends()],
        x: Annotated[float, Form(description="In pixels of the image.")],
        y: Annotated[float, Form(description="In pixels of the image.")],
        layer: LayerField = None,
    ) -> dict[str, Any]:
        served = model_named(service.models, of.model, any_model, "look at images")
        with ExitStack() as stack:
            stack.enter_context(service.line.place())
            seen = await service.image(stack, of.fields)
            values: dict[str, Any] = await _looked(seen, lambda: attended(served, seen, (x, y), layer))
            return values

    @app.post(
        "/features",
        summary="Features as colours: a PNG with a pixel for each patch; X-Explained is the share of variance it shows",
        responses={**_REFUSED, 200: {"content": {PNG: {}}}},
        response_class=Response,
    )
    async def features(
        of: Annotated[OfImage, Depends()],
        layer: LayerField = None,
        like: Annotated[str, Form(description="A model whose colours are to be resembled.")] = "",
        like_layer: LayerField = None,
    ) -> Response:
        served = model_named(service.models, of.model, any_model, "look at images")
        other = (model_named(service.models, like, any_model, "look at images"), like_layer) if like else None
        with ExitStack() as stack:
            stack.enter_context(service.line.place())
            seen = await service.image(stack, of.fields)
            png, explained = await _looked(seen, lambda: coloured(served, seen, layer, other))
        return Response(png, media_type=PNG, headers={"X-Explained": f"{explained:.4f}"})


async def _looked(image: StoredImage, look: Callable[[], Any]) -> Any:
    """Return what a look gives.

    Raises:
        Refusal: The image can't be seen by the model.
    """
    try:
        return await asyncio.to_thread(look)
    except (VitpError, MemoryError) as error:
        raise refusal_of(error, {image.address: "the image"}) from error
