"""The masked layer-normalised LSTM, recurrent policies on it, and PPO that trains them."""
