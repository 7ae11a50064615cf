"""The one way for a picture, under the commands and the server: NumPy alone, over sessions of torch or of another runtime."""
