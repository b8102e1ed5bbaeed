"""Terms on prototypes of the local features of a teacher, which ``learn_prototypes`` learns."""
