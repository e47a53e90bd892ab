#!/usr/bin/perl
# plain: looks through the environment
BEGIN { %saved = %ENV }
print "$saved{QUERY_STRING}\n";
