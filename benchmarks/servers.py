"""The servers that `benchmarks/serving.py` runs beside raymlp, each as its own documentation shows it, with the same small net.

    python benchmarks/servers.py NAME PORT FOLDER

`FOLDER/net.safetensors` holds the net's weights, standardisation folded into the first layer, and `FOLDER/ranges.json` the range of each
field. Nothing of raymlp is imported; libraries are imported where they are used, since some have an environment of their own.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Net:
    """Rows by name to probabilities."""

    def __init__(self, folder: str | Path) -> None:
        import torch
        from safetensors.torch import load_file
        from torch import nn

        torch.set_num_threads(1)
        self.torch = torch
        self.fields = list(json.loads((Path(folder) / "ranges.json").read_text()))
        layers: list[nn.Module] = []
        for before, after in ((len(self.fields), 64), (64, 64)):
            layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear(64, 1))
        self.net.load_state_dict(load_file(Path(folder) / "net.safetensors"))
        self.net.eval()

    def __call__(self, rows: list[dict[str, float]]) -> list[float]:
        with self.torch.inference_mode():
            x = self.torch.tensor([[row[name] for name in self.fields] for row in rows])
            return self.net(x).sigmoid()[:, 0].tolist()


def fastapi_app(folder: str) -> Any:
    """FastAPI, pydantic with the range of each field, torch."""
    from fastapi import FastAPI
    from pydantic import BaseModel, Field, create_model

    ranges = json.loads((Path(folder) / "ranges.json").read_text())
    row: Any = create_model("Row", **{name: (float, Field(ge=low, le=high)) for name, (low, high) in ranges.items()})
    body: Any = create_model("Body", __base__=BaseModel, instances=(list[row], ...))
    net, app = Net(folder), FastAPI()

    async def predict(request: Any) -> Any:
        return {"predictions": net([dict(row) for row in request.instances])}

    predict.__annotations__ = {"request": body}
    app.post("/predict")(predict)
    return app


def fastapi(port: int, folder: str) -> None:
    import uvicorn

    uvicorn.run(fastapi_app(folder), port=port, log_level="warning", access_log=False)


def ray_serve(port: int, folder: str, application: Callable[[Any], Any]) -> None:
    """Ray Serve as it is started when nothing is set."""
    import ray
    from ray import serve

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="warning")
    serve.start(http_options={"port": port})
    serve.run(application(serve))
    threading.Event().wait()


def ray_minimal(port: int, folder: str) -> None:
    def application(serve: Any) -> Any:
        @serve.deployment
        class Model:
            def __init__(self) -> None:
                self.net = Net(folder)

            async def __call__(self, request: Any) -> dict[str, list[float]]:
                return {"predictions": self.net((await request.json())["instances"])}

        return Model.bind()

    ray_serve(port, folder, application)


def ray_fastapi(port: int, folder: str) -> None:
    def application(serve: Any) -> Any:
        return serve.deployment(serve.ingress(lambda: fastapi_app(folder))(type("Model", (), {}))).bind()

    ray_serve(port, folder, application)


def litserve(port: int, folder: str) -> None:
    import litserve as ls
    from lit_service import Api

    ls.LitServer(Api(folder), accelerator="cpu", devices=1, workers_per_device=1).run(
        port=port, generate_client_file=False, log_level="warning"
    )


def mlflow(port: int, folder: str) -> None:
    import mlflow.pyfunc

    class Model(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def load_context(self, context: Any) -> None:
            self.net = Net(folder)

        def predict(self, context: Any, model_input: Any, params: Any = None) -> list[float]:
            return self.net(model_input.to_dict("records"))

    place = Path(folder) / "mlflow"
    if not place.exists():
        mlflow.pyfunc.save_model(str(place), python_model=Model(), pip_requirements=[])
    arguments = ["models", "serve", "-m", str(place), "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where it looks for uvicorn
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", *arguments])


def bentoml(port: int, folder: str) -> None:
    os.environ |= {"NET_FOLDER": folder, "BENTOML_DO_NOT_TRACK": "True"}
    here = str(Path(__file__).parent)
    arguments = ["serve", "bento_service:Model", "--working-dir", here, "--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", *arguments])


SERVERS: dict[str, Callable[[int, str], None]] = {
    "fastapi": fastapi,
    "ray-serve": ray_minimal,
    "ray-serve-fastapi": ray_fastapi,
    "litserve": litserve,
    "mlflow": mlflow,
    "bentoml": bentoml,
}

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    SERVERS[sys.argv[1]](int(sys.argv[2]), sys.argv[3])
