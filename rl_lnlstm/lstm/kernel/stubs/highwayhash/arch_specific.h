// TensorFlow's wheels lack the headers of HighwayHash and FarmHash, which XLA's include. Nothing of them is used here.
#pragma once
#define HH_TARGET_PREFERRED 0
