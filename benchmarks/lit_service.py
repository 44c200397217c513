"""The API that LitServe's processes load in `benchmarks/servers.py`. LitServe reads annotations, which must not be text."""

from typing import Any

import litserve as ls
from servers import Net


class Api(ls.LitAPI):  # type: ignore[misc]
    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def setup(self, device: str) -> None:
        self.net = Net(self.folder)

    def decode_request(self, request: dict[str, Any]) -> Any:
        return request["instances"]

    def predict(self, rows: Any) -> Any:
        return self.net(rows)

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"predictions": output}
