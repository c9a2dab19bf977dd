"""What others would forecast: trivial rows first, published models after them."""
