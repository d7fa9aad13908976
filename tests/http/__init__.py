"""Tests of cllm.http. A module's tests are in the file of its name, except:

acceptor, listeners, worker, workspace   test_server, test_many_connections, test_stop
stats                                    test_server
errors, request                          test_handler, test_parser
head                                     test_parser, test_parser_properties, test_rfc_vectors
http1                                    test_connection_life, test_deadlines, test_streaming,
                                         test_ping, test_stop
lingering                                test_connection_life
intake                                   test_incoming, test_content_coding
outgoing                                 test_streaming, test_deadlines
poller, transport                        test_connection_queue, test_connection_life

A test marked `any_version` runs over HTTP/1.1 and HTTP/2, each with and without TLS. The others of
a module with PROTOCOLS run over HTTP/1.1, most of them with TLS too. They are about:

parts of heads, chunks, HTTP/1.0         HTTP/1.1's own syntax
pipelining, Connection, half-closing     HTTP/1.1's connections
lingering, responses not read            HTTP/2 ends the stream: http2/test_flow_control
descriptors, threads, wake-ups           what lies below the protocols
thousands of connections                 the same, and they take long

http2/ has what only HTTP/2 has.
"""
