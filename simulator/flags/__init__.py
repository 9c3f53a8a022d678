"""The flags of `simulate` and `dspark tune`: each declared once, below the object that it belongs to."""
