#!/usr/bin/perl
# query: q=fast
use FCGI;
my $request = FCGI::Request();
my $n = 0;
while ($request->Accept() >= 0) { $n++; print "Content-Type: text/plain\r\n\r\nrequest $n $ENV{QUERY_STRING} ", $request->IsFastCGI ? 1 : 0, "\n"; }
print STDERR "loop left\n";
