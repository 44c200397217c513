"""What requests and answers look like: JSON rows, Arrow tables, and the tensors of the Open Inference Protocol."""
