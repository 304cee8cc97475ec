"""The screens of the console, one module each with its stylesheet beside it."""
