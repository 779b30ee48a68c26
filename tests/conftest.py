import os
import signal

# Environments render without a screen. SDL's search for one loads graphics drivers, whose LLVM and TensorFlow's crash.
os.environ["SDL_VIDEODRIVER"] = "dummy"

# Where the tests run in a shell's background, Ctrl-C is ignored, and would be by every process that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
