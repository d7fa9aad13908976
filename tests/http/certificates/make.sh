#!/bin/sh
# Makes the certificates of the tests, valid for 100 years: sh tests/http/certificates/make.sh
set -eu
cd "$(dirname "$0")"
key() { openssl ecparam -name prime256v1 -genkey -noout; }
authority() { # NAME
    key > "$1.key"
    openssl req -x509 -new -key "$1.key" -days 36500 -subj "/CN=cLLM test $1" -out "$1.pem" \
        -addext keyUsage=critical,keyCertSign,cRLSign
}
signed() { # AUTHORITY NAME EXTENSION
    key > "$2.key"
    # RFC 5280 sections 4.2.1.1 and 4.2.1.2; Python checks certificates strictly since 3.13.
    printf '%s\n' "$3" subjectKeyIdentifier=hash authorityKeyIdentifier=keyid > extension
    openssl req -new -key "$2.key" -subj "/CN=$2" |
        openssl x509 -req -CA "$1.pem" -CAkey "$1.key" -CAcreateserial -days 36500 \
            -extfile extension -out "$2.pem"
}
authority server-ca
authority client-ca
authority other-ca
signed server-ca localhost 'subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1'
signed server-ca renewed 'subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1'
signed server-ca example 'subjectAltName=DNS:a.example,DNS:*.B.example'
signed client-ca client 'extendedKeyUsage=clientAuth'
signed other-ca stranger 'extendedKeyUsage=clientAuth'
openssl pkcs8 -topk8 -in localhost.key -passout pass:secret -out encrypted.key
rm -f extension ./*.srl ./*-ca.key
