"""Questions of single papers, made out of any data: each file belongs to one method, which reads it beside its own."""
