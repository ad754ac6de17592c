"""The methods, one page each: collect, score, advantage, loss, reduce, update, record."""
