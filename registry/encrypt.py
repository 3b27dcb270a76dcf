"""Encryption on the server: Tink's AES256_GCM_HKDF_1MB, under a data key that is given (see `signer.segments` for the reader)."""

from typing import IO, Any, BinaryIO, cast

from modelfleet.signer.segments import KEY_BYTES, SEGMENT_BYTES

_KEY_TYPE = "type.googleapis.com/google.crypto.tink.AesGcmHkdfStreamingKey"
_CHUNK_BYTES = 1024 * 1024


def encrypt(
    plain: BinaryIO,
    target: IO[bytes],
    data_key: bytes,
    associated_data: bytes,
    *,
    segment_bytes: int = SEGMENT_BYTES,
) -> None:
    """Write the ciphertext of `plain` to `target`, which stays open; equal bytes give other ciphertext each time."""
    with _primitive(data_key, segment_bytes).new_encrypting_stream(_StaysOpen(target), associated_data) as stream:
        while piece := plain.read(_CHUNK_BYTES):
            stream.write(piece)


class _StaysOpen:
    """Tink closes what it has written to."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target

    def write(self, data: bytes) -> int:
        return self._target.write(data)

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        self._target.flush()

    def close(self) -> None:
        self._target.flush()


def _primitive(data_key: bytes, segment_bytes: int) -> Any:
    import tink as _tink
    from tink import secret_key_access, streaming_aead
    from tink.proto import aes_gcm_hkdf_streaming_pb2 as _key_format
    from tink.proto import common_pb2 as _hashes
    from tink.proto import tink_pb2 as _keysets

    if len(data_key) != KEY_BYTES:
        raise ValueError(f"expected a data key of {KEY_BYTES} bytes, got {len(data_key)}")
    tink, key_format, hashes, keysets = cast("tuple[Any, Any, Any, Any]", (_tink, _key_format, _hashes, _keysets))
    streaming_aead.register()
    params = key_format.AesGcmHkdfStreamingParams(
        ciphertext_segment_size=segment_bytes, derived_key_size=KEY_BYTES, hkdf_hash_type=hashes.SHA256
    )
    key = key_format.AesGcmHkdfStreamingKey(version=0, key_value=data_key, params=params)
    held = keysets.KeyData(
        type_url=_KEY_TYPE, value=key.SerializeToString(), key_material_type=keysets.KeyData.SYMMETRIC
    )
    only = keysets.Keyset.Key(key_data=held, status=keysets.ENABLED, key_id=1, output_prefix_type=keysets.RAW)
    keyset = keysets.Keyset(primary_key_id=1, key=[only]).SerializeToString()
    return tink.proto_keyset_format.parse(keyset, secret_key_access.TOKEN).primitive(streaming_aead.StreamingAead)
