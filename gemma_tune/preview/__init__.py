"""What the model will see of the rows: in the terminal and as a page, by the functions that training takes."""
