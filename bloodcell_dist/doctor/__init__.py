"""What `bloodcell-dist doctor` looks at: facts are gathered in `examination`, judged by pure functions beside them."""
