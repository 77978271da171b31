"""A WebSocket server for benchmarks, and what receives from it: shared by several scenarios.

The server (`server`) is a process of its own. It does the handshake by hand and then writes blocks
of frames that were made beforehand, so the receivers are what is measured. A message with the
number of messages ends the stream, then a close frame. The server answers no pings, so no client
sends any.

A round is 1280 text messages of 200 bytes (`frames`). All receivers check the same (`checking`):

* the last byte of each payload, which is its number modulo 64, so none is lost, doubled or out of
  order;
* each 64th payload whole, which contains its number modulo 1280;
* the number of messages at the end.

Most receivers exist twice, in `clients` and in `ringcast_side`. The functions named `check_...`
have the check inside their loop. The functions named `handle_...` call a handler with each payload.
They serve where the check is another one, such as comparing with recorded messages, and all
receivers pay for the call alike. One function for both would have to be the one with the call, and
that changes what is compared: measured with the same check, the call makes ringcast's loop 17%
slower, and that of websockets 1%.

What each receiver does with a frame:

* ringcast: the manager receives into the ring. Workers read message by message in a `for` loop and
  take the memoryview of each, or they read batches as numpy arrays.
* bare: a blocking recv_into() of up to 256 KiB that only counts bytes. It shows what the kernel
  allows.
* websocket-client: recv_data() in a loop, blocking. It makes a bytes object per message.
* picows: a callback that takes the memoryview of the payload.
* websockets: recv(decode=False) of its asyncio client in a loop. It makes a bytes object per
  message. Compression and pings are off, and its queue has no limit, which would cost more than it
  saves.
* aiohttp: receive() in a loop with decode_text=False. It makes a bytes object and a tuple per
  message.

The last three run on uvloop if it is installed, and picows with aiofastnet if that is installed.
"""
