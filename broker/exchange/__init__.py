"""A stand-in for an exchange: a server that plays captures or made-up market data, and the demo.

For trying, testing and measuring. The product needs nothing of it; the commands `demo` and `replay`
run it.
"""
