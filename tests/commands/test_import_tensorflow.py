"""Importing TensorFlow for a command: what it leaves out can still be used."""

import subprocess
import sys
import textwrap


def output_of(program: str, folder) -> str:
    words = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_keras_draws_though_matplotlib_was_not_imported(tmp_path):
    program = """
        import sys
        from rl_lnlstm.commands.import_tensorflow import import_tensorflow_quietly
        import_tensorflow_quietly()
        print([name for name in sys.modules if name.startswith("matplotlib")])
        import keras, numpy as np
        keras.visualization.plot_image_gallery(np.zeros([1, 8, 8, 3]), rows=1, cols=1, path="gallery.png")
        from keras.src.visualization.plot_bounding_box_gallery import patches
        print(patches.Patch.__module__)
        import matplotlib.pyplot
        print(matplotlib.pyplot is sys.modules["matplotlib.pyplot"], type(matplotlib).__name__)
    """
    assert output_of(program, tmp_path) == "[]\nmatplotlib.patches\nTrue module\n"
    assert (tmp_path / "gallery.png").stat().st_size > 0


def test_a_module_that_was_imported_before_stays(tmp_path):
    program = """
        import sys
        import matplotlib.pyplot as before
        from rl_lnlstm.commands.import_tensorflow import import_tensorflow_quietly
        import_tensorflow_quietly()
        import keras.src.visualization.plot_image_gallery as gallery
        print(gallery.plt is before, sys.modules["matplotlib.pyplot"] is before)
    """
    assert output_of(program, tmp_path) == "True True\n"
