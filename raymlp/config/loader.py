"""From YAML and overrides to one validated Config. The only place, beside the doors, that knows Hydra.

YAML is searched in `./conf` first and then in the package. Composed once, on the driver; workers get plain values.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from raymlp.config.jobs import Jobs
from raymlp.config.schema import Config, Site
from raymlp.config.sweep import quoted
from raymlp.core.errors import ConfigError, nearest

ROOT, OVERLAY = "raymlp", "overlay="
CREDENTIALS = re.compile(r"://[^/@\s]+:[^/@\s]+@")


def conf_folders() -> list[Path]:
    """Folders searched for YAML, first match wins: the user's `./conf`, then the one inside the package."""
    here = Path(__file__).resolve().parents[1]
    packaged = here / "conf" if (here / "conf").is_dir() else here.parent / "conf"
    own = Path.cwd() / "conf"
    return [own, packaged] if own.is_dir() and own.resolve() != packaged.resolve() else [packaged]


def choices(group: str) -> list[str]:
    """Names that a config group offers, for example the experiments."""
    return sorted({path.stem for folder in conf_folders() for path in (folder / group).glob("*.yaml")})


def has_local() -> bool:
    """Whether this machine has settings of its own, `conf/local/default.yaml`."""
    return any((folder / "local" / "default.yaml").is_file() for folder in conf_folders())


def load_config(
    experiment: str | None = None,
    overrides: Iterable[str] = (),
    *,
    base: Mapping[str, Mapping[str, Any]] | None = None,
    local: bool = True,
) -> Config:
    """Compose and validate the config of an experiment. `base` has whole sections, as a recorded config has them, which stand where
    the overrides choose no group for them, nor an experiment. `local` is whether `conf/local`, this machine's own, counts.

    `overrides` are Hydra overrides (`train.epochs=3`, `model=mlp`). A key that the YAML does not mention can be set
    without `+`, as long as the schema knows it. `overlay=PATH` lays a YAML file over what the groups give, as the `best.yaml` of a
    study; single keys among the overrides win over it. A section whose `kind` changes starts from that kind's defaults.

    Raises ConfigError, which names the key, what was found, what was expected and the nearest correct name.
    """
    words = list(overrides)
    if experiment is not None:
        words.insert(0, f"experiment={experiment}")
    return build_config(_compose(words, base or {}, local=local))


def load_site(overrides: Iterable[str] = ()) -> Site:
    """Where results and records are, for verbs that take everything else from a recorded run. Raises ConfigError as `load_config`."""
    words = list(overrides)
    stray = next((word for word in words if not word.startswith(("runtime.", "registry."))), None)
    if stray is not None:
        raise ConfigError(f"'{stray}' is a setting of the run, which is taken as it was recorded; expected runtime.* or registry.*.")
    values = {name: section for name, section in _compose(words).items() if name in Site.model_fields}
    _refuse_credentials(values)
    try:
        return Site.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item, values) for item in error.errors())) from None


def load_jobs(overrides: Iterable[str] = ()) -> Jobs:
    """How verbs run as jobs, whatever else the overrides say. Raises ConfigError as `load_config`."""
    values = {"jobs": _compose(list(overrides)).get("jobs") or {}}
    _refuse_credentials(values)
    try:
        return Jobs.model_validate(values["jobs"])
    except ValidationError as error:
        raise ConfigError("\n".join(_explain({**item, "loc": ("jobs", *item["loc"])}, values) for item in error.errors())) from None


def build_config(values: Mapping[str, Any]) -> Config:
    """Validate plain values. Raises ConfigError as `load_config` does."""
    _refuse_credentials(values)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item, values) for item in error.errors())) from None


def with_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """A new Config with some values changed, by full key (`train.epochs`). A section whose `kind` changes starts from that kind's
    defaults. Raises ConfigError."""
    values = config.model_dump(mode="json")
    for key in sorted(overrides, key=lambda key: (not key.endswith(".kind"), key.count("."))):
        *parents, last = key.split(".")
        place = values
        for depth, parent in enumerate(parents):
            if depth and place.get(parent) is None:
                place[parent] = {}
            if not isinstance(place.get(parent), dict):
                path = ".".join(parents[: depth + 1])
                raise ConfigError(f"{path} is no section of the config.{nearest(parent, place)}")
            place = place[parent]
        _set(place, last, overrides[key])
    return build_config(values)


def _set(section: dict[str, Any], key: str, value: Any) -> None:
    """Set a key; another `kind` takes the settings of the old one away."""
    if key == "kind" and section.get("kind", value) != value:
        section.clear()
    section[key] = value


def _laid_over(values: dict[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """The values with those of an overlay in their place, section by section."""
    changed = dict(values)
    if "kind" in overlay:
        _set(changed, "kind", overlay["kind"])
    for key, value in overlay.items():
        below = changed.get(key)
        changed[key] = _laid_over(below, value) if isinstance(value, Mapping) and isinstance(below, dict) else value
    return changed


def to_yaml(config: Config) -> str:
    """The resolved config as YAML, every default written out."""
    import yaml

    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _compose(words: Sequence[str], base: Mapping[str, Mapping[str, Any]] | None = None, *, local: bool = True) -> dict[str, Any]:
    """Hydra's composition over both folders. Its public `compose` needs the root config in the first folder, and a global."""
    from hydra import version
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.plugins import Plugins
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    folders = conf_folders()
    groups = {path.name for folder in folders for path in folder.iterdir() if path.is_dir()}
    places = ConfigSearchPathImpl()
    places.append("hydra", "pkg://hydra.conf")
    for folder in folders:
        places.append("main" if folder is folders[0] else ROOT, f"file://{folder}")
    places.append("schema", "structured://")
    version.setbase("1.3")
    Plugins.instance()
    opened = [_open_key(word, groups) for word in words if not word.startswith(OVERLAY)]
    chosen = {re.split("[@=]", word.lstrip("+~"), maxsplit=1)[0] for word in opened if not word.startswith("++")}
    sections = {} if not base or "experiment" in chosen else {name: values for name, values in base.items() if name not in chosen}
    overlays = [_overlay(word.removeprefix(OVERLAY)) for word in words if word.startswith(OVERLAY)]
    keys = [word for word in opened if word.startswith("++")]
    overrides = ["hydra.job.name=raymlp", *(word for word in opened if word not in keys)]
    if not local and has_local():
        overrides.append("~local")
    try:
        loader = ConfigLoaderImpl(places)
        tree = loader.load_configuration(ROOT, overrides, run_mode=RunMode.RUN)
        OmegaConf.set_readonly(tree, False)
        OmegaConf.set_struct(tree, False)
        del tree["hydra"]
        for name, section in sections.items():
            OmegaConf.update(tree, name, section, merge=False)
        for overlay in overlays:
            below = OmegaConf.to_container(tree)
            assert isinstance(below, dict)
            tree = OmegaConf.create(_laid_over({str(key): value for key, value in below.items()}, overlay))
        parsed = OverridesParser.create().parse_overrides(keys)
        for override in parsed:
            parent, _, last = override.key_or_group.rpartition(".")
            if last == "kind" and OmegaConf.select(tree, override.key_or_group, default=override.value()) != override.value():
                OmegaConf.update(tree, parent, {}, merge=False)  # another kind starts from its own defaults
        loader._apply_overrides_to_config(parsed, tree)
        values = OmegaConf.to_container(tree, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain_hydra(str(error), words, groups)) from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _overlay(path: str) -> dict[str, Any]:
    """The sections of an overlay file. Raises ConfigError."""
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"overlay is {path}, which cannot be read ({error}); expected a YAML file of sections. Set overlay.") from None
    if not isinstance(values, dict) or not all(isinstance(value, dict) for value in values.values()):
        raise ConfigError(f"overlay is {path}, which holds no sections; expected YAML as in 'train: {{epochs: 3}}'. Set overlay.")
    return values


def _open_key(word: str, groups: set[str]) -> str:
    """`train.epochs=3` becomes `++train.epochs=3`: the schema, not the YAML, says which keys exist."""
    word = quoted(word)
    key = word.split("=", 1)[0]
    is_group = key.split("@")[0] in groups
    return word if word[:1] in "+~" or is_group or "=" not in word or "/" in key else f"++{word}"


def _explain_hydra(message: str, words: Sequence[str], groups: set[str]) -> str:
    first = message.strip().splitlines()[0]
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        if "=" not in word and not word.startswith("~"):
            return f"'{word}' is not an override; expected KEY=VALUE, as in train.epochs=3."
        if key in groups and value not in choices(key):
            known = choices(key)
            return f"{key} is '{value}'; expected one of {', '.join(known)}.{nearest(value, known)}"
    return f"{first} (overrides: {' '.join(words) or 'none'})"


def _refuse_credentials(values: Any, path: str = "") -> None:
    if isinstance(values, Mapping):
        for key, value in values.items():
            _refuse_credentials(value, f"{path}.{key}" if path else str(key))
    elif isinstance(values, list | tuple):
        for value in values:
            _refuse_credentials(value, path)
    elif isinstance(values, str) and CREDENTIALS.search(values):
        raise ConfigError(
            f"{path} holds a user name and password; expected an address without them, since the config is stored "
            "with every run. Give credentials through the environment of the service's own client."
        )


def _explain(item: Any, values: Mapping[str, Any]) -> str:
    path, section = _locate(item["loc"], values)
    key = ".".join(path)
    kind, found = item["type"], item.get("input")
    if kind == "extra_forbidden":
        known = sorted(section.model_fields) if section else []
        match = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        better = ".".join([*path[:-1], match[0]]) if match else ""
        hint = f" Did you mean '{better}'?" if better else f" Known here: {', '.join(known)}."
        return f"{key} is not a setting; found {found!r}.{hint}"
    if kind == "missing":
        hint = f" Choose experiment=NAME, one of: {', '.join(choices('experiment'))}." if key == "problem" else ""
        return f"{key} is missing; expected a value.{hint} Set {key}."
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        expected = item.get("ctx", {}).get("expected_tags", "a known kind")
        return f"{key}.kind is {_shown(found, 'kind')}; expected one of {expected}. Set {key}.kind."
    reason = str(item["msg"]).removeprefix("Value error, ")
    if kind == "value_error":
        return f"{key or 'config'}: {reason}."
    reason = reason.replace("Input should be", "").strip() or str(item["msg"])
    hint = ""
    if kind == "literal_error" and isinstance(found, str):
        hint = nearest(found, re.findall(r"'([^']*)'", reason))
    return f"{key} is {found!r}; expected {reason}.{hint} Set {key}."


def _shown(found: Any, key: str) -> str:
    return repr(found.get(key)) if isinstance(found, Mapping) and key in found else "missing"


def _locate(loc: Sequence[Any], values: Any) -> tuple[list[str], type[BaseModel] | None]:
    """Key path of a pydantic location (union tags left out), and the section that holds its last key."""
    path: list[str] = []
    annotation: Any = Config
    holder: type[BaseModel] | None = None
    for part in loc:
        if isinstance(values, Mapping) and part == values.get("kind") and part not in values:
            annotation = _section_in(annotation, str(part))
            continue
        section = _section_in(annotation)
        if section is not None:
            holder = section
            field = section.model_fields.get(str(part))
            annotation = field.annotation if field else None
        path.append(str(part))
        if isinstance(values, Mapping):
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int):
            values = values[part]
    return path, holder


def _section_in(annotation: Any, kind: str | None = None) -> type[BaseModel] | None:
    """The section class inside an annotation; among variants the one whose `kind` fits."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get("kind")
        return annotation if kind is None or (field and kind in get_args(field.annotation)) else None
    return next((found for inner in get_args(annotation) if (found := _section_in(inner, kind))), None)
