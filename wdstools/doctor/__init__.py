"""What is wrong with shards and their indexes (checkup), and what can be saved of them (repair)."""
