"""From predictions to segments, from segments to numbers, from numbers to tables and pictures."""
