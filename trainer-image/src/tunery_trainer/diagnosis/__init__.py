"""What a run's numbers say of it, and how sure that is: numbers go in, findings and checks come out; nothing heavy."""
