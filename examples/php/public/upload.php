<?php
header('Content-Type: application/json');
$file = $_FILES['file'] ?? null;
if ($file === null || $file['error'] !== UPLOAD_ERR_OK) {
    http_response_code(422);
    echo json_encode(['error' => 'no file, or one too large', 'code' => $file['error'] ?? null]), "\n";
    exit;
}
echo json_encode([
    'name' => $file['name'],
    'bytes' => $file['size'],
    'sha256' => hash_file('sha256', $file['tmp_name']),
]), "\n";
