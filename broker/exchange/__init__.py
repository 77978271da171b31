"""The stand-in for an exchange: a server that plays captures or made-up market data, and the demo.

For trying, testing and measuring; nothing in the product needs it.
"""
