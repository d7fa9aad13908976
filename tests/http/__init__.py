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
"""
