"""Changes to a saved policy that make it malicious or damaged. Each takes the policy's folder."""

import io
import json
import os
import pickle
import zipfile

import keras
import numpy as np


class Executes:
    """Leaves a file, when unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def describe(folder, change):
    description = json.loads((folder / "policy.json").read_text())
    change(description)
    (folder / "policy.json").write_text(json.dumps(description))


def entries(folder):
    with zipfile.ZipFile(folder / "weights.npz") as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def store(folder, contents, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(folder / "weights.npz", "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def header(dtype, shape):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def object_array(folder):
    contents = entries(folder)
    file = io.BytesIO()
    np.save(file, np.array([Executes(folder.parents[1] / "executed")], object), allow_pickle=True)
    store(folder, {**contents, next(iter(contents)): file.getvalue()})


def pickle_for_weights(folder):
    (folder / "weights.npz").write_bytes(pickle.dumps(Executes(folder.parents[1] / "executed")))


def pickle_for_json(folder):
    (folder / "policy.json").write_bytes(pickle.dumps(Executes(folder.parents[1] / "executed"), 0))


def pickle_for_an_entry(folder):
    contents = entries(folder)
    store(folder, {**contents, next(iter(contents)): pickle.dumps(Executes(folder.parents[1] / "executed"))})


def outside_names(folder):
    contents = entries(folder)
    executed = header("<f4", (1,)) + bytes(4)
    store(folder, {**contents, "../../executed": executed, str(folder.parents[1] / "executed"): executed})


def lambda_layer(folder):
    """Makes the encoder a Keras model with a `Lambda`, which executes code."""
    target = str(folder.parents[1] / "executed")
    model = keras.Sequential([keras.Input([3]), keras.layers.Lambda(lambda x: (os.mknod(target), x)[1])])
    config = json.loads(model.to_json())
    (folder.parents[1] / "executed").unlink(missing_ok=True)  # making the model has called it
    describe(folder, lambda d: d["arguments"].update(encoder=config))


def lambda_for_activation(folder):
    config = {"module": "keras.layers", "class_name": "Lambda", "config": {"function": "open"}}
    describe(folder, lambda d: d["arguments"].update(activation=config))


def custom_object(folder):
    describe(folder, lambda d: d["arguments"].update(activation="imported_by_a_policy>Layer"))


def function_of_the_module(folder):
    describe(folder, lambda d: d["arguments"].update(activation="deserialize"))


def class_by_name(folder):
    describe(folder, lambda d: d.update(policy="imported_by_a_policy.Policy"))


def dtype_by_name(folder):
    describe(folder, lambda d: d["observation_space"].update(dtype="O"))


def compressed(folder):
    store(folder, entries(folder), zipfile.ZIP_DEFLATED)


def bomb(folder):
    """A gigabyte of zeros in a megabyte, with a policy whose weights are of that size."""
    contents = entries(folder)
    name = next(iter(contents))
    path = folder / "weights.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w") as file:
        file.write(header("<f4", (2**28,)))
        for _ in range(1024):
            file.write(bytes(2**20))
    describe(folder, lambda d: d["arguments"].update(units=2**13))


def large_header(folder):
    contents = entries(folder)
    name = next(iter(contents))
    store(folder, {**contents, name: header("<f4", (2**40, 2**24)) + bytes(64)})


def overflowing_header(folder):
    contents = entries(folder)
    store(folder, {**contents, next(iter(contents)): header("<f4", (2**32, 2**32))})


def overlapping_entries(folder):
    """Every entry of the archive is the same bytes, claimed many times."""
    content = entries(folder)
    store(folder, {"a.npy": next(iter(content.values()))})
    data = (folder / "weights.npz").read_bytes()
    start = data.index(b"PK\x01\x02")
    entry = data[start : data.index(b"PK\x05\x06")]
    many = b"".join(entry.replace(b"a.npy", b"%c.npy" % letter) for letter in range(97, 117))
    end = b"PK\x05\x06" + bytes(4) + (20).to_bytes(2, "little") * 2 + len(many).to_bytes(4, "little")
    (folder / "weights.npz").write_bytes(data[:start] + many + end + start.to_bytes(4, "little") + bytes(2))


def pipe(folder):
    (folder / "weights.npz").unlink()
    os.mkfifo(folder / "weights.npz")


def endless_device(folder):
    (folder / "policy.json").unlink()
    (folder / "policy.json").symlink_to("/dev/zero")


def secret_elsewhere(folder):
    (folder / "weights.npz").unlink()
    (folder / "weights.npz").symlink_to("/etc/passwd")


def many_units(folder):
    describe(folder, lambda d: d["arguments"].update(units=10**9))


def quadratic_units(folder):
    """Every number for itself is below what the file holds."""
    describe(folder, lambda d: d["arguments"].update(units=250, encoder_layers=[250] * 4))


def huge_integer(folder):
    describe(folder, lambda d: d["arguments"].update(units=10**4000))


def many_layers(folder):
    describe(folder, lambda d: d["arguments"].update(head_layers=[1] * 10**5))


def large_space(folder):
    describe(folder, lambda d: d["observation_space"].update(shape=[10**5, 10**6], low=0, high=1))


def large_action_space(folder):
    describe(folder, lambda d: d["action_space"].update(n=10**12))


def action_space_of_some_size(folder):
    describe(folder, lambda d: d["action_space"].update(n=2**26))


def not_a_number(folder):
    text = (folder / "policy.json").read_text()
    (folder / "policy.json").write_text(text.replace('"units": 4', '"units": NaN'))


def deep_nesting(folder):
    (folder / "policy.json").write_text("[" * 10**5 + "]" * 10**5)


def large_json(folder):
    (folder / "policy.json").write_text("[" + "0," * 2**24 + "0]")


def encrypted_entry(folder):
    data = bytearray((folder / "weights.npz").read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    (folder / "weights.npz").write_bytes(data)


KIT = [
    *(object_array, pickle_for_weights, pickle_for_json, pickle_for_an_entry, outside_names, lambda_layer),
    *(lambda_for_activation, custom_object, function_of_the_module, class_by_name, dtype_by_name, compressed, bomb),
    *(large_header, overflowing_header, overlapping_entries, pipe, endless_device, secret_elsewhere, many_units),
    *(quadratic_units, huge_integer, many_layers, large_space, large_action_space, action_space_of_some_size),
    *(not_a_number, deep_nesting, large_json, encrypted_entry),
]
