"""Packs cubins into one archive for each chip (tar, zstd), with a MANIFEST of what they were made from.

    pack.py write CUBINS COMPILER    CUBINS has NAME.sm_CHIP.cubin; COMPILER is one line that says what made them
    pack.py check CUBINS COMPILER    fails where a fresh build, the archives or the sources differ from the MANIFEST

Cubins are the same, byte for byte, wherever the same compiler makes them from the same sources.
"""

import hashlib
import io
import pathlib
import sys
import tarfile

import zstandard

HERE = pathlib.Path(__file__).parent
LEVEL = 19


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def sources():
    kernels = HERE.parent
    files = sorted([*kernels.glob("*.cu"), *kernels.glob("*.h")])
    return [f"source {sha256(file.read_bytes())} {file.name}" for file in files]


def by_chip(folder):
    """{chip: {file: bytes}} of NAME.CHIP.cubin."""
    chips = {}
    for path in sorted(pathlib.Path(folder).glob("*.cubin")):
        name, chip, _ = path.name.split(".")
        chips.setdefault(chip, {})[f"{name}.cubin"] = path.read_bytes()
    return chips


def manifest(chips, compiler):
    lines = [f"compiler {compiler}", *sources()]
    for chip, files in sorted(chips.items()):
        lines += [f"cubin {sha256(data)} {chip}/{name}" for name, data in sorted(files.items())]
    return "\n".join(lines) + "\n"


def pack(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in sorted(files.items()):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return zstandard.ZstdCompressor(level=LEVEL).compress(buffer.getvalue())


def unpack(data):
    plain = zstandard.ZstdDecompressor().decompress(data)
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def main():
    action, folder, compiler = sys.argv[1:]
    fresh = by_chip(folder)
    if not fresh:
        sys.exit(f"{folder} has no cubins")
    if action == "write":
        for old in HERE.glob("*.tar.zst"):
            old.unlink()
        for chip, files in fresh.items():
            (HERE / f"{chip}.tar.zst").write_bytes(pack(files))
        (HERE / "MANIFEST").write_text(manifest(fresh, compiler))
        return
    shipped = {path.name.removesuffix(".tar.zst"): unpack(path.read_bytes()) for path in HERE.glob("*.tar.zst")}
    expected = (HERE / "MANIFEST").read_text()
    for what, chips in (("a fresh build", fresh), ("the archives", shipped)):
        found = manifest(chips, compiler)
        different = sorted(set(found.splitlines()) ^ set(expected.splitlines()))
        if different:
            listed = "\n".join(different[:10])
            sys.exit(f"{what} and kernels/prebuilt/MANIFEST differ; run scripts/check-kernels.sh compile prebuilt:\n{listed}")


if __name__ == "__main__":
    main()
