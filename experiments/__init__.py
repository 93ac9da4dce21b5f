"""Lightning tasks that join the core packages and write down what they measure; none of the core's mathematics."""
