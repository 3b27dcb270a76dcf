"""One ONNX model in, one variant out, and the proof that they agree (DESIGN section 4.1).

Every conversion is `normalise -> convert -> prove -> benchmark`, each in a child process with time and memory limits, on a copy
of the model. Exit codes prove nothing: a variant exists only when its answers on the golden set agree with onnxruntime's on
the original. The converters (`to_*.py`) do not know each other; `table.py` names them.
"""
