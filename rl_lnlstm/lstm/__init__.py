"""The masked layer-normalised LSTM: its equations, its Keras layers and its compiled CPU kernel."""
