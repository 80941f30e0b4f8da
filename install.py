"""Run by the WebUI's launcher at every start, in a process of its own. The WebUI has all that this
extension needs; a host that lacks one of these gets it, and nothing that is there is touched."""

from importlib.util import find_spec

NEEDED = {"safetensors": "safetensors", "open_clip": "open-clip-torch", "PIL": "Pillow"}


def main():
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if not missing:
        return
    import launch  # takes longer than all the rest, so only when there is work

    if getattr(launch.args, "skip_install", False):
        print(f"sd-webui-ip-adapter needs {', '.join(missing)}; not installed because of --skip-install")
        return
    for package in missing:
        launch.run_pip(f"install {package}", f"{package} for sd-webui-ip-adapter")


main()
