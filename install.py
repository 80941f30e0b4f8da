"""Run by the WebUI's launcher at every start, in a process of its own. The WebUI has all that this
extension needs; a host that lacks one of these gets it, and nothing that is there is touched."""

from importlib.util import find_spec

# Import name to requirement: the WebUI v1.10.1's own pins, whose dependencies leave its torch alone.
NEEDED = {"safetensors": "safetensors==0.4.2", "open_clip": "open-clip-torch==2.20.0", "PIL": "Pillow==9.5.0"}


def main():
    missing = [requirement for module, requirement in NEEDED.items() if find_spec(module) is None]
    if not missing:
        return
    import launch  # takes longer than all the rest, so only when there is work

    if getattr(launch.args, "skip_install", False):
        print(f"sd-webui-ip-adapter needs {', '.join(missing)}; not installed because of --skip-install")
        return
    for requirement in missing:
        launch.run_pip(f"install {requirement}", f"{requirement} for sd-webui-ip-adapter")


main()
