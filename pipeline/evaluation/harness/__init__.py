"""EleutherAI's lm-evaluation-harness as a library: it makes the requests and the scores, our network answers."""
