"""Training an adapter: recipes, the factors on their base, the loop, and the job."""
