"""Run by the WebUI's launcher at every start, in a process of its own. The WebUI has all that this
extension needs; a host that lacks one of these gets it, and nothing that is there is touched: what
has bounds on other packages comes without them, for they would move a host's own pins (Neo has a newer
protobuf than open_clip asks for, and open_clip imports none here)."""

from importlib.util import find_spec

# Import name to requirement: the WebUI v1.10.1's own pins.
NEEDED = {"safetensors": "safetensors==0.4.2", "open_clip": "open-clip-torch==2.20.0", "PIL": "Pillow==9.5.0"}
# What open_clip imports beside torch, torchvision, tqdm and huggingface_hub, which every host has.
FOR_OPEN_CLIP = {"ftfy": "ftfy", "regex": "regex"}
# Only face adapters take it, so the rest works where it cannot be installed. onnxruntime-gpu and -directml have the
# same import name, and stay. From 1.27 on it wants a protobuf that the WebUI's other packages refuse.
FOR_FACES = {"onnxruntime": "onnxruntime>=1.15,<1.27"}


def main():
    missing, beside, faces = (
        [requirement for module, requirement in group.items() if find_spec(module) is None]
        for group in (NEEDED, FOR_OPEN_CLIP, FOR_FACES)
    )
    if not missing and not beside and not faces:
        return
    import launch  # takes longer than all the rest, so only when there is work

    if getattr(launch.args, "skip_install", False):
        print(
            f"sd-webui-ip-adapter needs {', '.join(missing + beside + faces)}; not installed because of --skip-install"
        )
        return
    for command in [f"--no-deps {requirement}" for requirement in missing] + beside:
        launch.run_pip(f"install {command}", f"{command.split()[-1]} for sd-webui-ip-adapter")
    for requirement in faces:
        try:
            launch.run_pip(f'install "{requirement}"', f"{requirement} for face adapters of sd-webui-ip-adapter")
        except RuntimeError as error:
            print(f"sd-webui-ip-adapter works without {requirement}, but for face adapters: {error}")


main()
