"""Human (or simulated) preference: votes, their statistics, and the preference pairs made of them."""
