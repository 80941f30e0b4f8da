"""Run by the WebUI's launcher at every start, in a process of its own. The WebUI has all that this
extension needs; a host that lacks one of these gets it, and nothing that is there is touched."""

from importlib.util import find_spec

# Import name to requirement: the WebUI v1.10.1's own pins, whose dependencies leave its torch alone.
NEEDED = {"safetensors": "safetensors==0.4.2", "open_clip": "open-clip-torch==2.20.0", "PIL": "Pillow==9.5.0"}
# Only face adapters take it, so the rest works where it cannot be installed. onnxruntime-gpu and -directml have the
# same import name, and stay. From 1.27 on it wants a protobuf that the WebUI's other packages refuse.
FOR_FACES = {"onnxruntime": "onnxruntime>=1.15,<1.27"}


def main():
    missing, faces = (
        [requirement for module, requirement in group.items() if find_spec(module) is None]
        for group in (NEEDED, FOR_FACES)
    )
    if not missing and not faces:
        return
    import launch  # takes longer than all the rest, so only when there is work

    if getattr(launch.args, "skip_install", False):
        print(f"sd-webui-ip-adapter needs {', '.join(missing + faces)}; not installed because of --skip-install")
        return
    for requirement in missing:
        launch.run_pip(f"install {requirement}", f"{requirement} for sd-webui-ip-adapter")
    for requirement in faces:
        try:
            launch.run_pip(f'install "{requirement}"', f"{requirement} for face adapters of sd-webui-ip-adapter")
        except RuntimeError as error:
            print(f"sd-webui-ip-adapter works without {requirement}, but for face adapters: {error}")


main()
