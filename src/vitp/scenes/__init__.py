"""Generated overhead scenes with exact labels: nothing to download, nothing to license, as many as wanted."""

from vitp.scenes.address import SceneAddress, load_pair, load_scene, parse_scene_address
from vitp.scenes.domains import DOMAINS, SceneDomain, get_domain
from vitp.scenes.export import LAYOUT_WRITERS, write_scenes
from vitp.scenes.render import render_pair, render_scene
from vitp.scenes.sets import SceneSet, object_labels, scene_set
from vitp.scenes.types import Scene, SceneChange, SceneObject, ScenePair

__all__ = [
    "DOMAINS",
    "LAYOUT_WRITERS",
    "Scene",
    "SceneAddress",
    "SceneChange",
    "SceneDomain",
    "SceneObject",
    "ScenePair",
    "SceneSet",
    "get_domain",
    "load_pair",
    "load_scene",
    "object_labels",
    "parse_scene_address",
    "render_pair",
    "render_scene",
    "scene_set",
    "write_scenes",
]
