"""Random search over settings on Ray Tune. What a trial does is handed in, so this room knows no other stage."""
