"""Faces in pictures: detection, alignment and recognition by ONNX files that users have. Needs onnxruntime and cv2,
imported at the first use, so everything else works without them."""

from .analyse import FaceAnalyser, choose
from .detect import Detector, Face
from .packs import FacePacks, ModelFile
from .parsing import FaceParser
from .recognise import Recogniser

__all__ = ["Detector", "Face", "FaceAnalyser", "FacePacks", "FaceParser", "ModelFile", "Recogniser", "choose"]
