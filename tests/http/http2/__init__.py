"""Tests of cllm.http.http2. A module's tests are in the file of its name, except:

errors, inbound, settings, streams   test_rfc9113
guards                      test_attacks
http2                       test_rfc9113, test_http2, test_clients
outbox, stream, windows     test_flow_control
huffman                     test_hpack
"""
