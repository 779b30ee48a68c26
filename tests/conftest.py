import os

# Environments render without a screen. SDL's search for one loads graphics drivers, whose LLVM and TensorFlow's crash.
os.environ["SDL_VIDEODRIVER"] = "dummy"
